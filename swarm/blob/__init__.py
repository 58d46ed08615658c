"""What a blob is: digest, layout, torrent, errors. Pure."""
