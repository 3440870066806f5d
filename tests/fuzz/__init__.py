"""Damaged and hostile files by the hundred thousand; see ``campaign.py`` for how to run it."""
