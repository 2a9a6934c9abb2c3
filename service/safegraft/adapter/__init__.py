"""Making adapters: from the difference of two models, and from other adapters.

low_rank.py  the best factors of a matrix, and how much of it they hold
names.py     what the tensors of a checkpoint are called in memory, which is what adapters go by
folder.py    an adapter folder that PEFT loads, written tensor by tensor
extract.py   the difference of two models as an adapter
merge.py     several adapters merged into one

Adding an adapter to a model is the business of checkpoint/lora.py.
"""
