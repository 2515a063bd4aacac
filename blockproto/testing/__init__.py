"""What apps and stores are tested with: bad networks, and a store in memory."""
