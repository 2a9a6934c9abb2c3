"""What a result needs to be at home on the Hugging Face Hub.

card.py  the model card: README.md with the Hub's metadata
"""
