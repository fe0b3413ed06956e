"""Which policy and budget serve a user's own model on a user's own recordings, without labels.

Recorded turns are replayed with the full cache, whose answers are the reference, and then with each policy and budget,
each turn with the same prompt and measured on the same answer. Read in this order: `recordings` and `threads` (what was
recorded), `actions` (are two answers the same?), `asking` (a server), `measures` (distances between two answers),
`records` (the folder), `replay` (one cell), `conduct` (all of them), `advice` (what follows), `page` (what it looks
like).
"""
