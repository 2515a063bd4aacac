"""The client's downloads: a part file and a small ledger beside the destination of each."""
