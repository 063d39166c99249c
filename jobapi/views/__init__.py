"""The HTTP surface: a module per noun."""
