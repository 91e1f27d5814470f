"""Getting bytes: indexes, mirrors, listings, downloads, and archives unpacked safely."""
