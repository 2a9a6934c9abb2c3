"""Reading checkpoints: named tensors plus config, tokenizer and processor files.

types.py       Checkpoint, TensorInfo, Identity: what the engine sees
dtypes.py      safetensors' dtypes
header.py      parse and bound a safetensors header
folder.py      a folder in Hugging Face layout
sidecars.py    which files come along, and which never do
vocabulary.py  token strings and their rows
write.py       safetensors headers, shards and index: bytes only, no files

Nothing here knows recipes, methods, the engine or the network.
"""
