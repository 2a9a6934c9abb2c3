"""What a result needs to be at home on the Hugging Face Hub.

card.py                the model card of a result: README.md with the Hub's metadata
tensors.py             in it: what was done to which part of the model
snippets.py            in it: code that loads and asks the model
licences.py            in it: how the inputs' licences go together
markdown.py            Markdown that strangers' words cannot get out of
evaluation.py          an evaluation as data, from the file that `safegraft evaluate` writes
evaluated.py           a card with an evaluation in the place of its warning
evaluation_section.py  in it: tables and notes for people
manifest.py            safegraft.json, read and checked
results.py             what can be published: a merged folder, or a plan that is computed file by file
edition.py             what is published of it: its card, its plot, a safegraft.json that is true
publication.py         where to, and what came of it, as data
publishing.py          publishes it: shard by shard, visible in one commit
outlook.py             what that would change
head.py                what a repository holds, and what would have to go
repository.py          looks at it, makes it, commits, tags
uploading.py           large files by Xet or LFS
retrying.py            asks the Hub again where that may help
journal.py             what an earlier run has sent
scratch.py             where shards lie until they are sent
verify.py              the bytes of a folder or a repository against its manifest
recompute.py           and against what the recipe gives
file_kinds.py          which files of a repository are a model's
verification.py        what is found by either, as data
hashing.py             streams of bytes, hashed one after the other
"""
