"""AMQP 1.0. `connection` is the transport, and all but it and `links` can be had without Proton."""
