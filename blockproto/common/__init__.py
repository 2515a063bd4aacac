"""What every room may use: block arithmetic, names, times, how heads are laid out, tasks."""
