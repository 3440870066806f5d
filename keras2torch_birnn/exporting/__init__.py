"""Write a converted model in a form that runs without this package."""
