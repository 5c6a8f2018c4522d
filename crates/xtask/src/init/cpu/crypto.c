/* crypto sha256|aes-128-gcm MIB, crypto rsa2048 COUNT KEY: fixed amounts of work by OpenSSL's library, and its result.
   Declares what it uses itself, so that it is built without the library's headers (OpenSSL 3.0, EVP and PEM manuals). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct evp_cipher_ctx_st EVP_CIPHER_CTX;
typedef struct evp_cipher_st EVP_CIPHER;
typedef struct evp_md_ctx_st EVP_MD_CTX;
typedef struct evp_md_st EVP_MD;
typedef struct evp_pkey_st EVP_PKEY;
typedef struct engine_st ENGINE;
typedef struct evp_pkey_ctx_st EVP_PKEY_CTX;
EVP_CIPHER_CTX *EVP_CIPHER_CTX_new(void);
const EVP_CIPHER *EVP_aes_128_gcm(void);
int EVP_EncryptInit_ex(EVP_CIPHER_CTX *, const EVP_CIPHER *, ENGINE *, const unsigned char *, const unsigned char *);
int EVP_EncryptUpdate(EVP_CIPHER_CTX *, unsigned char *, int *, const unsigned char *, int);
int EVP_EncryptFinal_ex(EVP_CIPHER_CTX *, unsigned char *, int *);
int EVP_CIPHER_CTX_ctrl(EVP_CIPHER_CTX *, int, int, void *);
EVP_MD_CTX *EVP_MD_CTX_new(void);
void EVP_MD_CTX_free(EVP_MD_CTX *);
const EVP_MD *EVP_sha256(void);
int EVP_DigestInit_ex(EVP_MD_CTX *, const EVP_MD *, ENGINE *);
int EVP_DigestUpdate(EVP_MD_CTX *, const void *, size_t);
int EVP_DigestFinal_ex(EVP_MD_CTX *, unsigned char *, unsigned *);
EVP_PKEY *PEM_read_PrivateKey(FILE *, EVP_PKEY **, void *, void *);
int EVP_DigestSignInit(EVP_MD_CTX *, EVP_PKEY_CTX **, const EVP_MD *, ENGINE *, EVP_PKEY *);
int EVP_DigestSign(EVP_MD_CTX *, unsigned char *, size_t *, const unsigned char *, size_t);
int EVP_DigestVerifyInit(EVP_MD_CTX *, EVP_PKEY_CTX **, const EVP_MD *, ENGINE *, EVP_PKEY *);
int EVP_DigestVerify(EVP_MD_CTX *, const unsigned char *, size_t, const unsigned char *, size_t);

enum { GET_TAG = 16, PIECE = 16384, VERIFICATIONS = 32 };

static unsigned char input[PIECE], output[PIECE + 16];

static void must(int ok, const char *what) {
    if (ok != 1) {
        fprintf(stderr, "%s failed\n", what);
        exit(1);
    }
}

static void print(const unsigned char *bytes, size_t count) {
    for (size_t i = 0; i < count; i++) printf("%02x", bytes[i]);
    putchar('\n');
}

static void sha256(long mib) {
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    unsigned char digest[64];
    unsigned size;
    must(EVP_DigestInit_ex(context, EVP_sha256(), NULL), "init");
    for (long i = 0; i < mib * (1048576 / PIECE); i++) must(EVP_DigestUpdate(context, input, PIECE), "update");
    must(EVP_DigestFinal_ex(context, digest, &size), "final");
    print(digest, size);
}

static void aes_gcm(long mib) {
    EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
    unsigned char tag[16], all[16] = {0};
    int size;
    for (long i = 0; i < mib * (1048576 / PIECE); i++) {
        unsigned char start[12] = {i & 255, i >> 8 & 255, i >> 16 & 255};
        must(EVP_EncryptInit_ex(context, EVP_aes_128_gcm(), NULL, input, start), "init");
        must(EVP_EncryptUpdate(context, output, &size, input, PIECE), "update");
        must(EVP_EncryptFinal_ex(context, output + size, &size), "final");
        must(EVP_CIPHER_CTX_ctrl(context, GET_TAG, sizeof tag, tag), "tag");
        for (int k = 0; k < 16; k++) all[k] ^= tag[k] ^ output[k];
    }
    print(all, sizeof all);
}

static void rsa(long count, const char *path) {
    unsigned char signature[512], sum[32] = {0};
    FILE *file = fopen(path, "r");
    EVP_PKEY *key = file ? PEM_read_PrivateKey(file, NULL, NULL, NULL) : NULL;
    must(key != NULL, "reading the key");
    for (long i = 0; i < count; i++) {
        size_t size = sizeof signature;
        memcpy(input, &i, sizeof i);
        EVP_MD_CTX *context = EVP_MD_CTX_new();
        must(EVP_DigestSignInit(context, NULL, EVP_sha256(), NULL, key), "signing");
        must(EVP_DigestSign(context, signature, &size, input, 64), "signing");
        EVP_MD_CTX_free(context);
        for (int k = 0; k < VERIFICATIONS; k++) {
            context = EVP_MD_CTX_new();
            must(EVP_DigestVerifyInit(context, NULL, EVP_sha256(), NULL, key), "verifying");
            must(EVP_DigestVerify(context, signature, size, input, 64), "verifying");
            EVP_MD_CTX_free(context);
        }
        for (size_t k = 0; k < size; k++) sum[k % 32] = sum[k % 32] * 31 + signature[k];
    }
    print(sum, sizeof sum);
}

int main(int count, char **words) {
    long amount = count > 2 ? atol(words[2]) : 0;
    for (int i = 0; i < PIECE; i++) input[i] = (unsigned char)(i * 131 + (i >> 8) * 7);
    if (amount <= 0) return 2;
    if (!strcmp(words[1], "sha256")) sha256(amount);
    else if (!strcmp(words[1], "aes-128-gcm")) aes_gcm(amount);
    else if (!strcmp(words[1], "rsa2048") && count > 3) rsa(amount, words[3]);
    else return 2;
    return 0;
}
