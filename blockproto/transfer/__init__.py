"""The transfer engine: one sender, one receiver, the uploads that are alive, and the committer.

sender       one file over one or several streams
receiver     the blocks of one stream, written in place and verified
live_upload  takeover, join, repair and commit of an upload; live_uploads keeps them by key
committer    batches that become durable
threads      the only place that runs store code in worker threads
slow_disk    the only place that notices a slow disk
"""
