"""The server's store: a folder, partials beside it, and a ledger in LMDB."""
