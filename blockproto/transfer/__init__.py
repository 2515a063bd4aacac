"""The transfer engine: one sender, one receiver, live uploads, and the committer.

sender          sends one file over one or several streams
receiver        one stream of an upload; fetch_receiver: of a download; brief_receiver: of a file without OPEN
block_receiver  the bytes of one block: checked, written in place, hashed and verified; block_prefix: of a resumed one
live_upload     takeover, join, repair and commit of an upload; live_uploads keeps them by key
committer       batches that become durable; hooks that have to agree before
file_service    what a principal may do
threads         the only place that runs store code in worker threads
slow_disk       the only place that notices a slow disk
"""
