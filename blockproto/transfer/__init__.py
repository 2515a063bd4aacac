"""The transfer engine: one sender, one receiver, the uploads that are alive, and the committer.

sender          one file over one or several streams
receiver        what an upload's sender may say on one stream; fetch_receiver: a download's, brief_receiver: a brief file's
block_receiver  the bytes of one block: checked, written in place, hashed and verified; block_prefix: of a resumed one
live_upload     takeover, join, repair and commit of an upload; live_uploads keeps them by key
committer       batches that become durable
threads         the only place that runs store code in worker threads
slow_disk       the only place that notices a slow disk
"""
