/* MQTT 3.1.1 and 5.0 as bytes: only the packets that a load generator and a reflector need. Buffers are the caller's. */
#ifndef WIRE_H
#define WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    CONNECT = 1, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK, PINGREQ,
    PINGRESP, DISCONNECT
};

#define PAYLOAD_HEAD 16u /* publisher (4), sequence number (4), time in ns (8): what every payload starts with */

static inline size_t put_varint(uint8_t *out, uint32_t value) {
    size_t n = 0;
    do {
        uint8_t digit = value & 0x7f;
        value >>= 7;
        out[n++] = digit | (value ? 0x80 : 0);
    } while (value);
    return n;
}

static inline size_t put_u16(uint8_t *out, unsigned value) {
    out[0] = (uint8_t)(value >> 8);
    out[1] = (uint8_t)value;
    return 2;
}

static inline unsigned get_u16(const uint8_t *in) { return (unsigned)in[0] << 8 | in[1]; }

static inline size_t put_string(uint8_t *out, const char *text) {
    size_t n = strlen(text);
    put_u16(out, (unsigned)n);
    memcpy(out + 2, text, n);
    return n + 2;
}

/* Reads a variable byte integer. Returns the bytes it takes, 0 when there are too few, -1 when it is malformed. */
static inline int get_varint(const uint8_t *in, size_t n, uint32_t *value) {
    uint32_t result = 0;
    for (int i = 0; i < 4; i++) {
        if ((size_t)i >= n) return 0;
        result |= (uint32_t)(in[i] & 0x7f) << (7 * i);
        if (!(in[i] & 0x80)) {
            *value = result;
            return i + 1;
        }
    }
    return -1;
}

/* Is there a whole packet at `in`? 1: yes, its header and whole length are set; 0: not yet; -1: malformed. */
static inline int next_packet(const uint8_t *in, size_t n, size_t *header, size_t *total) {
    uint32_t left;
    if (n < 2) return 0;
    int width = get_varint(in + 1, n - 1, &left);
    if (width <= 0) return width;
    *header = 1u + (size_t)width;
    *total = *header + left;
    return *total <= n;
}

/* `out` must have room for 512 bytes and the strings. An empty user means that none is sent. */
static inline size_t build_connect(
    uint8_t *out, int version, const char *client_id, const char *user, const char *password, unsigned keepalive,
    bool clean, uint32_t expiry
) {
    uint8_t body[2048];
    size_t n = put_string(body, "MQTT");
    body[n++] = (uint8_t)version;
    body[n++] = (uint8_t)((clean ? 0x02 : 0) | (*user ? 0xc0 : 0));
    n += put_u16(body + n, keepalive);
    if (version == 5) {
        if (clean) {
            body[n++] = 0;
        } else {
            body[n++] = 5;
            body[n++] = 0x11; /* Session Expiry Interval */
            n += put_u16(body + n, expiry >> 16);
            n += put_u16(body + n, expiry & 0xffff);
        }
    }
    n += put_string(body + n, client_id);
    if (*user) {
        n += put_string(body + n, user);
        n += put_string(body + n, password);
    }
    out[0] = CONNECT << 4;
    size_t width = put_varint(out + 1, (uint32_t)n);
    memcpy(out + 1 + width, body, n);
    return 1 + width + n;
}

static inline size_t build_subscribe(uint8_t *out, int version, unsigned id, const char *filter, int qos) {
    uint8_t body[1024];
    size_t n = put_u16(body, id);
    if (version == 5) body[n++] = 0;
    n += put_string(body + n, filter);
    body[n++] = (uint8_t)qos;
    out[0] = SUBSCRIBE << 4 | 2;
    size_t width = put_varint(out + 1, (uint32_t)n);
    memcpy(out + 1 + width, body, n);
    return 1 + width + n;
}

/* PUBACK, PUBREC, PUBREL and PUBCOMP with success: four bytes in both versions. */
static inline size_t build_ack(uint8_t *out, int type, unsigned id) {
    out[0] = (uint8_t)(type << 4 | (type == PUBREL ? 2 : 0));
    out[1] = 2;
    put_u16(out + 2, id);
    return 4;
}

/* The Receive Maximum of a 5.0 CONNACK's properties; 65535 when it is not given. */
static inline unsigned receive_maximum(const uint8_t *in, size_t n) {
    uint32_t length;
    int width = get_varint(in, n, &length);
    if (width <= 0) return 65535;
    in += width;
    if (length > n - (size_t)width) return 65535;
    const uint8_t *end = in + length;
    while (in < end) {
        size_t left = (size_t)(end - in - 1);
        switch (*in++) {
        case 0x21:
            return left >= 2 ? get_u16(in) : 65535;
        case 0x24: case 0x25: case 0x28: case 0x29: case 0x2a:
            in += 1;
            break;
        case 0x13: case 0x22:
            in += 2;
            break;
        case 0x11: case 0x27:
            in += 4;
            break;
        case 0x12: case 0x1a: case 0x1c: case 0x1f: case 0x15: case 0x16:
            if (left < 2) return 65535;
            in += 2 + get_u16(in);
            break;
        case 0x26: {
            if (left < 2) return 65535;
            in += 2 + get_u16(in);
            if (end - in < 2) return 65535;
            in += 2 + get_u16(in);
            break;
        }
        default:
            return 65535;
        }
    }
    return 65535;
}

#endif
