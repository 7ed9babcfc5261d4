"""A day of a farm in minutes: discrete events around the farm's own scaling, forecast and claim order. No engine runs here."""
