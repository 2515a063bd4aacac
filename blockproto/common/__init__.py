"""For every room: block arithmetic, names, times, the layout of heads, tasks."""
