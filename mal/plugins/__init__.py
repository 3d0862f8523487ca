"""Operations with bodies of their own: CRF refinement, crops and masks, and what DeepStream loads."""
