"""Reading checkpoints over a network, by byte ranges: only what a merge needs of them is moved.

store.py        what a place is: a listing of files, and ranges of their bytes
checkpoint.py   a checkpoint that lies in a store: to the engine what a local folder is
adapter.py      a PEFT adapter that lies in one
files.py        a listing as the files of one folder
weights.py      the weight files of a store: headers, tensors, what they are verified by
window.py       fetches ahead what is expected, in parallel and in bounded memory
blocks.py       what is expected, cut into requests
verifying.py    the sha256 of files from the bytes that pass

hub.py          the Hugging Face Hub as a store
hub_model.py    whether a Hub model is read from the Hub or from its cache on this machine
cached.py       whole files, into that cache
access.py       the Hub's address and who asks
urls.py         opens a URL: http_folder.py a web server, object_store.py a bucket
url_policy.py   which URLs a server may be made to read, and which addresses it connects to
url_names.py    how messages show a URL
http_ranges.py  one range of one URL, tried again where that helps
errors.py       what goes wrong on the way, in words

Stands on `checkpoint`. Knows no engine, no recipes, no gRPC.
"""
