"""The heart: cell equations, merge modes, masks, and the engines that run them in torch."""
