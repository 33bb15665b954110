#include "client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "link.h"
#include "load.h"
#include "probe.h"
#include "wire.h"

#define HANDSHAKE_NS 60000000000u /* how long connect_all waits for one more client to become ready */

uint64_t heard;
static int epoll = -1;
static uint8_t big[BIG + (128u << 10)];

uint8_t *room_for(struct client *c, size_t bytes) {
    if (c->out_off == c->out_len) c->out_off = c->out_len = 0;
    if (c->out_len + bytes > c->out_room) {
        c->out_room = (c->out_len + bytes) * 2;
        c->out = realloc(c->out, c->out_room);
        if (!c->out) give_up("out of memory");
    }
    return c->out + c->out_len;
}

static void lose(struct client *c) {
    close_link(c->link);
    c->link = NULL;
    close(c->fd);
    c->state = CLOSED;
    c->rest_len = c->out_off = c->out_len = 0;
}

void flush_client(struct client *c) {
    while ((c->out_off < c->out_len || link_waits(c->link)) && !c->blocked) {
        ssize_t n = link_send(c->link, c->fd, c->out + c->out_off, c->out_len - c->out_off);
        if (n >= 0) {
            c->out_off += (size_t)n;
        } else if (errno == EAGAIN) {
            c->blocked = true;
        } else if (errno != EINTR) {
            return; /* reading finds the end and reports it */
        }
    }
}

void start_client(struct client *c) {
    if (epoll < 0) epoll = epoll_create1(EPOLL_CLOEXEC);
    c->fd = open_socket();
    c->state = CONNECTING;
    c->blocked = true;
    c->opened = now_ns();
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event)) give_up("epoll_ctl: %s", strerror(errno));
}

void stop_client(struct client *c) {
    if (c->state == CLOSED) return;
    memcpy(room_for(c, 2), (uint8_t[]){DISCONNECT << 4, 0}, 2);
    c->out_len += 2;
    flush_client(c);
    lose(c);
}

/* The handshake of `c` did not come to its end. */
static void fail(struct client *c, const struct events *events, unsigned code, const char *why) {
    if (!events->failed) give_up("client %ld: %s (0x%02x)", c->index, why, code);
    lose(c);
    events->failed(c, code);
}

static void send_connect(struct client *c) {
    char client_id[96], user[96], kind = "pshb"[c->role];
    snprintf(client_id, sizeof client_id, "%s-%d-%c%ld", opt.tag, (int)getpid(), kind, c->index);
    long number = opt.users ? c->index % opt.users : c->index;
    fill_template(user, sizeof user, c->role == SUBSCRIBER ? opt.sub_user : opt.user, number);
    c->out_len += build_connect(
        room_for(c, 4096), (int)opt.version, client_id, user,
        c->role == SUBSCRIBER ? opt.sub_password : opt.password, (unsigned)opt.keepalive, c->clean, 3600
    );
    c->state = WAIT_CONNACK;
    flush_client(c);
}

/* TCP is connected, or more of the handshake above it has come. */
static void step(struct client *c, const struct events *events) {
    if (c->state == CONNECTING) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            fail(c, events, 0, strerror(error));
            return;
        }
        c->link = open_link(c->fd, opt.users ? c->index % opt.users : c->index);
        c->state = SHAKING;
    }
    int done = shake_hands(c->link, c->fd);
    if (done == 1) send_connect(c);
    else if (done < 0) fail(c, events, 0, "the handshake of TLS or WebSocket failed");
}

static void take_connack(struct client *c, const struct events *events, const uint8_t *in, size_t header, size_t total) {
    if (in[0] >> 4 != CONNACK || total < header + 2) give_up("packet type %d came instead of CONNACK", in[0] >> 4);
    if (in[header + 1]) {
        fail(c, events, in[header + 1], "CONNACK refuses it");
        return;
    }
    c->receive_maximum = opt.version == 5 ? receive_maximum(in + header + 2, total - header - 2) : 65535;
    bool present = in[header] & 1;
    if ((c->role == PUBLISHER || (c->role == HOLDER && !opt.subscribe)) || present) {
        c->state = READY;
        return;
    }
    c->out_len += build_subscribe(room_for(c, 2048), (int)opt.version, 1, c->topic, (int)opt.qos);
    c->state = WAIT_SUBACK;
    flush_client(c);
}

static void take_suback(struct client *c, const uint8_t *in, size_t total) {
    if (in[0] >> 4 != SUBACK) give_up("packet type %d came instead of SUBACK", in[0] >> 4);
    if (in[total - 1] > 2) give_up("subscriber %ld: SUBACK for %s says 0x%02x", c->index, c->topic, in[total - 1]);
    c->state = READY;
}

static size_t take(struct client *c, const struct events *events, const uint8_t *in, size_t n) {
    size_t used = 0, header, total;
    int whole;
    while ((whole = next_packet(in + used, n - used, &header, &total)) == 1) {
        const uint8_t *packet = in + used;
        used += total;
        if (c->state == READY) {
            if (events->packet) events->packet(c, packet, header, total);
        } else {
            if (c->state == WAIT_CONNACK) take_connack(c, events, packet, header, total);
            else take_suback(c, packet, total);
            if (c->state == READY && events->ready) events->ready(c);
        }
        if (c->state == CLOSED) return used;
    }
    if (whole < 0) give_up("a malformed packet came to client %ld", c->index);
    return used;
}

static void keep_rest(struct client *c, const uint8_t *in, size_t n) {
    if (n > c->rest_room) {
        c->rest = realloc(c->rest, c->rest_room = n * 2);
        if (!c->rest) give_up("out of memory");
    }
    if (n) memcpy(c->rest, in, n);
    c->rest_len = n;
}

static void read_client(struct client *c, const struct events *events) {
    for (;;) {
        size_t kept = c->rest_len;
        if (kept > sizeof big - BIG) give_up("a packet of more than 128 KiB came to client %ld", c->index);
        if (kept) memcpy(big, c->rest, kept);
        ssize_t n = link_recv(c->link, c->fd, big + kept, BIG);
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0) {
            if (c->state != READY) {
                fail(c, events, 0, "the broker closed the connection in the handshake");
                return;
            }
            lose(c);
            if (events->gone) events->gone(c);
            return;
        }
        heard = now_ns();
        size_t used = take(c, events, big, kept + (size_t)n);
        if (c->state == CLOSED || c->state == CONNECTING) return;
        keep_rest(c, big + used, kept + (size_t)n - used);
        if (n < (ssize_t)BIG && !c->link) break; /* through TLS the end of what is there is not seen otherwise */
    }
    flush_client(c);
}

void turn(const struct events *events, int wait_ms) {
    struct epoll_event ready[256];
    int n = epoll_wait(epoll, ready, 256, tick_probe(wait_ms));
    for (int i = 0; i < n; i++) {
        struct client *c = ready[i].data.ptr;
        const struct events *to = c->own ? c->own : events;
        if (ready[i].events & EPOLLOUT) {
            c->blocked = false;
            if (c->state > SHAKING) flush_client(c);
            if (c->state == READY && to->writable) to->writable(c);
        }
        if (c->state == CONNECTING || c->state == SHAKING) step(c, to);
        if (ready[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR) && c->state > SHAKING) read_client(c, to);
    }
}

static long ready_count;

static void one_more(struct client *c) {
    (void)c;
    ready_count++;
}

void connect_all(struct client *clients, long count) {
    const struct events events = {.ready = one_more};
    long started = 0, before = ready_count = 0;
    uint64_t since = now_ns();
    while (ready_count < count) {
        while (started < count && started - ready_count < opt.parallel) start_client(&clients[started++]);
        turn(&events, 1000);
        if (ready_count > before) since = now_ns(), before = ready_count;
        if (now_ns() - since > HANDSHAKE_NS) give_up("only %ld of %ld clients got through", ready_count, count);
    }
}
