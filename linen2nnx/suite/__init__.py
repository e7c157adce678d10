"""The suite of problems: declaring, testing, checking and timing them."""
