"""The transfer engine: one sender, one receiver, the uploads that are alive, and the committer.

sender       one file over one or several streams
receiver     the blocks of one stream, written in place and verified
live_uploads takeover, join, repair and commit of an upload
committer    batches that become durable; the only place that runs store code in threads
"""
