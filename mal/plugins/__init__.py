"""Operations with bodies of their own: CRF refinement, and what DeepStream loads."""
