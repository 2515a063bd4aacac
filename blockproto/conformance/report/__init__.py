"""What people and programs read of a run: a live line, JSON lines, JUnit XML, one HTML file."""
