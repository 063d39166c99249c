"""The shapes of requests and responses. No rules, no queries."""
