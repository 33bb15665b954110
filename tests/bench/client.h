/* A client's connection: handshake, reading, writing. What arrives after the handshake goes to the scenario. */
#ifndef CLIENT_H
#define CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum role { PUBLISHER, SUBSCRIBER, HOLDER, PROBE };
enum state { CLOSED, CONNECTING, SHAKING, WAIT_CONNACK, WAIT_SUBACK, READY };

struct events;
struct link;

struct client {
    int fd;
    struct link *link; /* NULL: plain TCP */
    const struct events *own; /* events that go here instead of to the scenario */
    enum role role;
    enum state state;
    bool clean;   /* clean session / clean start */
    bool blocked; /* the socket takes no more bytes until EPOLLOUT */
    long index;   /* its number among those of its role */
    char topic[128];
    uint64_t opened; /* when its connect began, ns */
    unsigned receive_maximum;
    uint8_t *rest; /* the beginning of a packet whose end has not come yet */
    size_t rest_len, rest_room;
    uint8_t *out; /* bytes from out_off to out_len wait for the socket */
    size_t out_off, out_len, out_room;
    /* publishers */
    uint32_t sent, acked, refused, inflight;
    uint8_t *busy; /* per packet identifier: waits for an acknowledgement */
    unsigned last_id, ids;
    uint8_t *head; /* a PUBLISH up to its payload, without remaining length */
    size_t head_len;
};

/* What a scenario does with a packet after the handshake, and when a client is ready, writable or gone. `failed`: a handshake
   that did not come to its end, with the CONNACK's code or 0; without it the program gives up. */
struct events {
    void (*packet)(struct client *c, const uint8_t *in, size_t header, size_t total);
    void (*ready)(struct client *c);
    void (*writable)(struct client *c);
    void (*gone)(struct client *c);
    void (*failed)(struct client *c, unsigned code);
};

extern uint64_t heard; /* when the bytes that are being looked at were read, ns */

void start_client(struct client *c);                                   /* begin the handshake */
void stop_client(struct client *c);                                    /* DISCONNECT, close */
void connect_all(struct client *clients, long count);                  /* until every one is ready; gives up if one is refused */
uint8_t *room_for(struct client *c, size_t bytes);                     /* where to append; then add to out_len */
void flush_client(struct client *c);
void turn(const struct events *events, int wait_ms);                   /* wait for events and handle them */

#endif
