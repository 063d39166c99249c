"""What runs without being asked: maintenance, long polling, event streams."""
