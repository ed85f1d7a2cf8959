"""What a site has: manifest, study definition, readers, preparation and the prepared store."""
