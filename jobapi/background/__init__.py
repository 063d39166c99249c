"""What runs outside requests: maintenance, long polling, event streams."""
