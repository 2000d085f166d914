"""Several adapters on one base: switched, merged, combined, or chosen per row of a batch."""
