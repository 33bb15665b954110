/* The smallest thing that a publisher and a subscriber take for a broker: no rights, no wildcards, no queues. A publisher's
   packets go as they came to everybody who subscribed to the topic of its first PUBLISH. What the generator reaches
   against it is what the generator can do. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "load.h"
#include "wire.h"

struct peer {
    int fd, version;
    bool publisher; /* its first PUBLISH has come: `topic` is where it publishes */
    char topic[128];
    struct peer *next, **targets; /* who hears `topic`, as of `known` */
    size_t target_count, known;
    uint8_t *rest;
    size_t rest_len;
};

static struct peer *peers, **hearers;
static size_t hearer_count, changes; /* `changes` grows whenever somebody subscribes or goes */
static uint8_t buffer[BIG + (128u << 10)], acks[BIG];
static int epoll;

/* Everything goes out before anything more is read: waiting is the only flow control here. */
static void send_all(struct peer *p, const uint8_t *bytes, size_t n) {
    while (n) {
        ssize_t sent = send(p->fd, bytes, n, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent > 0) {
            bytes += sent;
            n -= (size_t)sent;
        } else if (errno == EAGAIN) {
            struct pollfd writable = {.fd = p->fd, .events = POLLOUT};
            poll(&writable, 1, 1000);
        } else {
            return;
        }
    }
}

static void copy_topic(struct peer *p, const uint8_t *at) {
    size_t n = get_u16(at);
    if (n >= sizeof p->topic) give_up("the topic is too long");
    memcpy(p->topic, at + 2, n);
    p->topic[n] = 0;
}

static void accept_peer(int listener) {
    int one = 1;
    struct peer *p = calloc(1, sizeof *p);
    if (!p || (p->fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) < 0) give_up("accept: %s", strerror(errno));
    setsockopt(p->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    p->next = peers;
    peers = p;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = p};
    epoll_ctl(epoll, EPOLL_CTL_ADD, p->fd, &event);
}

static void greet(struct peer *p, const uint8_t *in, size_t header) {
    p->version = in[header + 6];
    if (p->version == 5) send_all(p, (uint8_t[]){CONNACK << 4, 3, 0, 0, 0}, 5);
    else send_all(p, (uint8_t[]){CONNACK << 4, 2, 0, 0}, 4);
}

static void subscribe(struct peer *p, const uint8_t *in, size_t header, size_t total) {
    copy_topic(p, in + header + (p->version == 5 ? 3 : 2));
    hearers = realloc(hearers, (hearer_count + 1) * sizeof *hearers);
    if (!hearers) give_up("out of memory");
    hearers[hearer_count++] = p;
    changes++;
    if (p->version == 5) send_all(p, (uint8_t[]){SUBACK << 4, 4, in[header], in[header + 1], 0, in[total - 1]}, 6);
    else send_all(p, (uint8_t[]){SUBACK << 4, 3, in[header], in[header + 1], in[total - 1]}, 5);
}

/* The answer that the sender of this packet waits for. */
static size_t answer(uint8_t *out, const uint8_t *in, size_t header) {
    int type = in[0] >> 4, qos = in[0] >> 1 & 3;
    if (type == PUBLISH && qos)
        return build_ack(out, qos == 1 ? PUBACK : PUBREC, get_u16(in + header + 2 + get_u16(in + header)));
    if (type == PUBREC) return build_ack(out, PUBREL, get_u16(in + header));
    if (type == PUBREL) return build_ack(out, PUBCOMP, get_u16(in + header));
    return 0;
}

/* The only wildcard here is a whole first level. */
static bool hears(const struct peer *p, const char *topic) {
    const char *rest = strchr(topic, '/');
    return p->topic[0] == '+' && rest ? !strcmp(p->topic + 1, rest) : !strcmp(p->topic, topic);
}

static void find_targets(struct peer *p) {
    p->targets = realloc(p->targets, (hearer_count + 1) * sizeof *p->targets);
    if (!p->targets) give_up("out of memory");
    p->target_count = 0;
    p->known = changes;
    for (size_t i = 0; i < hearer_count; i++)
        if (hears(hearers[i], p->topic)) p->targets[p->target_count++] = hearers[i];
}

static void forward(struct peer *from, const uint8_t *bytes, size_t n) {
    if (from->known != changes) find_targets(from);
    for (size_t i = 0; i < from->target_count; i++) send_all(from->targets[i], bytes, n);
}

/* Answers the whole packets in `in`; runs of PUBLISH go on as one piece. Returns the bytes used. */
static size_t take(struct peer *p, const uint8_t *in, size_t n) {
    size_t used = 0, run = 0, header, total, ack_len = 0;
    while (next_packet(in + used, n - used, &header, &total) == 1) {
        const uint8_t *packet = in + used;
        int type = packet[0] >> 4;
        if (type == PUBLISH && !p->publisher) {
            p->publisher = true;
            copy_topic(p, packet + header);
        }
        if (type != PUBLISH && used > run) forward(p, in + run, used - run);
        if (type != PUBLISH) run = used + total;
        if (type == CONNECT) greet(p, packet, header);
        else if (type == SUBSCRIBE) subscribe(p, packet, header, total);
        ack_len += answer(acks + ack_len, packet, header);
        used += total;
    }
    if (used > run) forward(p, in + run, used - run);
    send_all(p, acks, ack_len);
    return used;
}

static void forget(struct peer *p) {
    for (size_t i = 0; i < hearer_count; i++)
        if (hearers[i] == p) hearers[i--] = hearers[--hearer_count];
    changes++;
    struct peer **link = &peers;
    while (*link != p) link = &(*link)->next;
    *link = p->next;
    close(p->fd);
    free(p->targets);
    free(p->rest);
    free(p);
}

static void read_peer(struct peer *p) {
    size_t kept = p->rest_len;
    if (kept) memcpy(buffer, p->rest, kept);
    ssize_t n = recv(p->fd, buffer + kept, BIG, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        forget(p);
        return;
    }
    size_t all = kept + (size_t)n, used = take(p, buffer, all);
    p->rest_len = all - used;
    if (p->rest_len > 128u << 10) give_up("a packet of more than 128 KiB came");
    if (p->rest_len) {
        p->rest = realloc(p->rest, p->rest_len);
        if (!p->rest) give_up("out of memory");
        memcpy(p->rest, buffer + used, p->rest_len);
    }
}

/* Listens until it is killed. */
int run_reflect(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)opt.port)};
    inet_pton(AF_INET, opt.host, &address.sin_addr);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096))
        give_up("listen on %s:%ld: %s", opt.host, opt.port, strerror(errno));
    epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, ready[64];
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    printf("listening on %s:%ld\n", opt.host, opt.port);
    fflush(stdout);
    for (;;) {
        int n = epoll_wait(epoll, ready, 1, -1);
        for (int i = 0; i < n; i++) {
            if (!ready[i].data.ptr) accept_peer(listener);
            else read_peer(ready[i].data.ptr);
        }
    }
}
