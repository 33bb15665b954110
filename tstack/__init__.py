"""tstack: an MQTT broker, a registration service and their tools.

The rooms, from the ground up: `errors`, then `env`, `logs` and `service`, then `mqtt` (the protocol), `store` (the key-value
store), `identity`, `pki` and `routing`, then `client`, then the programs `broker`, `registration` and `consume`, and on top
`cli`. An import only ever points down.
"""

__version__ = "0.1.0"
