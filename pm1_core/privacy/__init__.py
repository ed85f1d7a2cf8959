"""What makes a statement about privacy true: noise, its accounting, and the ledger at a site."""
