"""What a server answers besides uploads, on streams of their own: FETCH, LIST, REMOVE and digests."""
