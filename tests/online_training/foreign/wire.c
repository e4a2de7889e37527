/* Lines of "token header payload" in hexadecimal in, lines of "hmac crc32" out: the wire's test vectors for the C library. */
#include "headrace.h"
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(void)
{
    static char token[80], text[512], content[1 << 20];
    static unsigned char key[32], header[224], payload[1 << 19];
    while (scanf("%79s %511s %1048575s", token, text, content) == 3) {
        char hex[65];
        size_t length = 0;
        sodium_hex2bin(key, 32, token, strlen(token), NULL, &length, NULL);
        sodium_hex2bin(header, 224, text, strlen(text), NULL, &length, NULL);
        length = 0;
        if (strcmp(content, "-")) sodium_hex2bin(payload, sizeof payload, content, strlen(content), NULL, &length, NULL);
        memset(header + 192, 0, 32);
        headrace_wire_sign(header, key, payload, length);
        sodium_bin2hex(hex, sizeof hex, header + 192, 32);
        printf("%s %u\n", hex, length ? headrace_wire_crc32(0, payload, length) : 0u);
    }
    return 0;
}
