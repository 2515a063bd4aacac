"""The transfer engine: one sender, one receiver, the uploads that are alive, and the committer.

sending      one file over one or several streams
receiving    the blocks of one stream, written in place and verified
uploads      takeover, join, repair and commit of an upload
committing   batches that become durable; the only place that runs store code in threads
"""
