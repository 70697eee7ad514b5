"""The five screens, and the two pages over them."""
