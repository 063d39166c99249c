"""What can be done, a module per noun. Services never commit."""
