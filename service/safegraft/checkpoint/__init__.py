"""Reading checkpoints: named tensors plus config, tokenizer and processor files.

types.py        Checkpoint, TensorInfo, Identity: what the engine sees
dtypes.py       safetensors' dtypes
folder.py       a folder in Hugging Face layout
contents.py     what its files say: puts the modules below together, wherever the files lie
files.py        opens the files of one folder and nothing outside of it; notices changes
weights.py      single file or index and shards; whether they agree
header.py       parses a safetensors header and holds it to bounds
config.py       config.json; quantised weights are refused
sidecars.py     which files come along, which never do, and what is changed in them
vocabulary.py   token strings and their rows
identity.py     the digest that names a checkpoint's content
adapter*.py     a PEFT adapter: its folder, its settings, its modules, and what they mean in a model
lora*.py        a model with such an adapter added, computed when it is read
write.py        safetensors headers and the index: bytes only, no files
strict_json.py  JSON from strangers
findings.py     collects problems, shows strangers' strings safely

Nothing here knows recipes, methods, the engine or the network.
"""
