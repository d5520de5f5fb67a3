"""Records of any columns as samples."""
