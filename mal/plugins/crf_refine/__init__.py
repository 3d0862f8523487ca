"""CRF refinement `mal::CRFRefine`: one meaning (`reference.py`), several bodies (`contract.py` names what they share)."""
