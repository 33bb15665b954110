"""Who somebody is and what that user may do. No MQTT type in any signature, so that others can ask too."""
