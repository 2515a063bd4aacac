"""Handlers of the requests besides uploads: FETCH, LIST and REMOVE, each on a stream of its own."""
