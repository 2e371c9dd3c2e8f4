"""Which parts of the old model, put into the new one, bring answers back."""
