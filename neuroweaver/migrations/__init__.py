"""Every change that the store's tables have been through, run by `neuroweaver/schema.py`."""
