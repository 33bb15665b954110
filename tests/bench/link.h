/* What lies between a client and its socket: nothing, TLS, a WebSocket, or both. */
#ifndef LINK_H
#define LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct link;

/* On a connected socket. NULL: plain TCP, for which everything below is `recv` and `send`. `number` chooses the certificate. */
struct link *open_link(int fd, long number);
/* The handshakes above TCP. 1: done; 0: more bytes are wanted; -1: refused. */
int shake_hands(struct link *link, int fd);
/* As `recv` and `send`; `errno` is EAGAIN when it has to wait. A sent byte may still wait here: `link_waits`. */
ssize_t link_recv(struct link *link, int fd, void *bytes, size_t room);
ssize_t link_send(struct link *link, int fd, const void *bytes, size_t n);
bool link_waits(const struct link *link);
void close_link(struct link *link);

#endif
