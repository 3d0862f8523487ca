"""CRF refinement `mal::CRFRefine`: one meaning (`reference.py`), several bodies; `contract.py` is what they share."""
