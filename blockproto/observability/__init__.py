"""What people see of a running server or client: observers, logs, metrics, recordings and their explanation."""
