"""Training data: from the formats that people publish to a `datasets.Dataset` with the columns TRL's trainers read.

llava.py       LLaVA's JSON and Hugging Face `messages` + `images`: pictures and talk, rows without a picture among them
vlguard.py     VLGuard: harmful and harmless instructions about pictures, with the answers a safe model gives
spa_vl.py      SPA-VL: a picture, a question, a better and a worse answer
text_chat.py   text alone: prompt/response, instruction/output, messages
mixing.py      several data sets in given shares
filtering.py   leaves out what keywords, classifiers or a guard model find unsafe
classifiers.py the models that filtering asks
digest.py      sha256 of a data set's content, images included

What the loaders are made of, in the order in which a row passes through:

sources.py     rows of a file, a folder saved by `datasets`, or a Hub data set
album.py       their images: found, verified, not decoded
messages.py    a conversation as messages with content parts, cut into prompt and completion
columns.py     the columns, their types, and the finished Dataset
faults.py      every row that cannot be used, reported together

Knows no model that is trained, no trainer and no benchmark.
"""
